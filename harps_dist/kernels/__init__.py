"""Triton kernels for training on one GPU; PyTorch's own take over wherever Triton or CUDA is missing."""
