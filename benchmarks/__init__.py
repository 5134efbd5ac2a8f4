"""This project beside its peers: `python -m benchmarks.run` measures its speed."""
