"""Kernels for particular devices, behind the interfaces of `models`."""
