"""The third-party benchmark: whoever claims that a method is better can prove it here, and is stopped if it is unfair.

evaluate     a folder of predictions against a folder of references, resumable
manifest     what a benchmark is: test sets, structures, metrics, rules
submission   what a submission is: predictions or a command, and what it is made of
protocol     `run_benchmark`: all of it, from the manifests to the leaderboard
sandbox, runner    a submitter's command, which cannot read the references
fairness, leakage  checks that can fail
analysis     rankings, comparisons and subgroups per test set
pages, views, results    reports and the leaderboard site
ray_shell    cases and commands over Ray
"""
