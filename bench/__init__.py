"""The workloads of rayloom beside plain Ray, in one run."""
