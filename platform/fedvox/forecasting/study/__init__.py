"""The study of forecasting methods on simulated patients whose future is known.

cells      train and judge one method on one data set with one seed; what is done is kept
summary    errors relative to "no change" with confidence intervals, and what must hold
pictures   figures of the summary and of single forecasts
"""
