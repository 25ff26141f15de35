"""The live gateway."""
