"""The figures: what a delivery costs, against a floor that does the least that can be called the same job.

``./dev bench all`` measures; ``docs/benchmarks.md`` says how and why. A contender is a pair of a schema and a
process (`contender.py`), so that other queues can be measured in the same run.
"""
