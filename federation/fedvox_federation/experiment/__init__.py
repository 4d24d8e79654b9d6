"""Does it help to let clinics of low compliance take part, and at which ε? The experiment, from answers to tables.

clinics      eight clinics of five kinds, really assessed and attested
problem      what is learned: a model, a loss, sites with their patients
tabular      breast cancer and handwritten digits, from scikit-learn
brains       MNI152 heads on the clinics' scanners, segmented after pretraining on others
arms         who takes part, and with how much noise
engine       federated training in one process
runs         what is to be run, and what has been
statistics   intervals and paired tests over seeds
report       tables and curves
"""
