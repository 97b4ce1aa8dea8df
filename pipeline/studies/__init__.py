"""`lemon study`: arms of a comparison, tuned alike, trained under several seeds, and what came out, with its doubt.

A study is a few runs: one in which every arm is tuned, looking at the validation half of the evaluation set, and one
for each seed, in which the arms as they were chosen are evaluated on the test half. Files, in the order of the way:
schema (what a study's YAML says) -> trials (an arm with settings) -> composed (the runs) -> running (one after the
other) -> curves, choice (which trial is best) -> statistics, results (what is claimed) -> figures, page.
"""
