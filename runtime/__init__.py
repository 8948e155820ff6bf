"""Runs a detector on the device: the contract, preprocessing, backends, video. Never imports torch."""
