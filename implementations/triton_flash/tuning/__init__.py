"""Which tiles of the kernels are fastest on a GPU: `python -m qkverify.implementations.triton_flash.tuning`."""
