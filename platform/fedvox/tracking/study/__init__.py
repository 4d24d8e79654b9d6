"""The study of promptable networks: unseen kinds of lesions in unseen heads and scanners, against peers and ablations.

cells       one method with one seed: trained, judged, kept as a file
patients    who judges, who teaches
summary     intervals over seeds and patients; what must hold
pictures    for the page
"""
