"""Devices, disks and screens."""
