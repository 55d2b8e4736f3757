"""The peers, one small program each, run in processes of their own: `python -m bench.peers BENCH PEER SPEC`."""
