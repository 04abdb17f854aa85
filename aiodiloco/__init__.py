"""Asyncio-native DiLoCo: train one model on many serverless GPUs that meet only in an object store."""
