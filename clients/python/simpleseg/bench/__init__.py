"""The load generator: what `simpleseg bench` and the scripts in `benchmarks/` measure with.

``load.run_load(target, questions, load)`` puts a load on a server and gives a ``LoadResult``;
``questions.load_questions`` makes what is asked. It needs the extra ``bench`` (aiohttp and
hdrhistogram), which is imported when a load runs.
"""
