"""Finding a hang: a worker that was stopped or lost, a link that was cut, a collective that some never join.

In each worker a thread says twice a second how far this rank has come, over a store of its own beside the process group
(channel.py); rank 0 reads what all say and judges (judgement.py) by limits learnt from the run (limits.py); the others
look at rank 0. Who is told of a hang, or finds rank 0 silent, writes its stack (stacks.py) and ends (watch.py).
"""
