"""llama.cpp's server as a program of its own, so that a crash or a lack of memory ends it and nothing else.

Run by path, with the standard library and the package `xllamacpp` alone:

    llama.py CONFIG

CONFIG is a JSON file, since a key must not stand in a command line. The address where it listens is written to the file
that CONFIG names, whole or not at all, beside the number of this process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

BATCH_TOKENS = 128


def parameters(library: Any, config: dict[str, Any]) -> Any:
    """What the server is told. These names change with its versions, so that one is pinned."""
    made = library.CommonParams()
    made.model.path = config["model"]
    made.model_alias = {config["alias"]}
    made.hostnames = ["127.0.0.1"]
    made.port = 0
    made.api_keys = [config["key"]]
    # All of these are on unless somebody says no.
    made.ui = False
    made.endpoint_slots = False
    made.endpoint_metrics = True
    made.cors_origins, made.cors_credentials, made.cors_origins_explicit = "http://127.0.0.1", False, True
    made.n_parallel = config["slots"]
    made.n_ctx = config["context_tokens"] * config["slots"]
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = config["threads"]
    # Small models run on: what a request does not limit is limited here.
    made.n_predict = config["answer_tokens"]
    made.n_gpu_layers = 0
    # It hears of a request that is given up, or is new, between two batches of a prompt: so long that takes.
    made.n_batch = made.n_ubatch = BATCH_TOKENS
    # Earlier prompts, kept beside those in the slots: 8 GiB of them unless somebody says less.
    made.cache_ram_mib = 0
    made.use_jinja = True
    made.chat_template = config["template"]
    made.warmup = False
    made.offline = True
    return made


def main(path: str) -> int:
    """Serve until SIGTERM."""
    config = json.loads(Path(path).read_text())
    if config["library"]:
        sys.path.insert(0, config["library"])
    import xllamacpp

    wanted = {signal.SIGTERM, signal.SIGINT}
    # Before the server's threads, which inherit it: the signal is for `sigwait` alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    server = xllamacpp.Server(parameters(xllamacpp, config))
    told = Path(config["address_file"])
    partly = told.with_suffix(".new")
    partly.write_text(json.dumps({"pid": os.getpid(), "address": server.listening_address}))
    partly.replace(told)
    signal.sigwait(wanted)
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
