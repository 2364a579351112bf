"""Laws checked in worker processes, which an implementation may end, block or exhaust without harm to the judge.

    limits          how long a call may take, and how much memory a worker may hold
    process         one worker: started, watched, ended, with all processes that it left behind
    exchange        what judge and worker say to each other: JSON lines
    worker          what a worker does
    deaths          what is said of a law whose worker died
    planning        the cells of targets, whose code is imported and first called by a worker
    dialogue        a request to a worker, and its answer
    judge           the laws of cells, checked by workers
    asking          what the judge then draws and compares itself, of results that it asks a worker for
    questions       those to one worker about one cell
    bare_call       calls that do not show who asks
    outside_run     the run of such a law: its calls are made by the worker
    disagreements   what is said where both disagree
    replaying       one stored counterexample again

The judge never imports a target and never unpickles what a worker wrote. It alone ends the program.
"""
