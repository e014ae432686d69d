"""Triton kernels for spectra and training on one GPU; PyTorch's own take over where Triton or CUDA is missing."""
