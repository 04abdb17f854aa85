"""torchft's own tests of `LocalSGD` and `DiLoCo`, run on `StoreManager`: `python -m aiodiloco.testing.torchft`."""
