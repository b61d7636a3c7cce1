"""A model on this machine: chosen, installed with consent, served by llama.cpp inside the cluster."""
