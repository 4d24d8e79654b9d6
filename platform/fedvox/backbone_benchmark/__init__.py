"""Which backbone to scale: all of them from scratch under one compute budget, and what pretraining adds to each.

    config       what is compared, and under which budget
    profile      parameters, FLOPs, step time and peak memory of one backbone
    trials       backbone × phase × seed, as ordinary training runs
    trial_run    one trial, in this process
    tasks        trials in this process, one after the other
    tune_shell   the same over Ray Tune; the only module here that knows Ray
    analysis     Dice, ranks, gains and rank correlation, with intervals
    report       tables, figures, JSON, CSV, Markdown, HTML
    benchmark    all of it in order

Import the modules themselves: this package imports none of them.
"""
