"""Statistics for the scaling layers from data that is spread over many files and machines, with Apache Beam."""

from tf_tricks.beam.feature_statistics import FeatureStatistics

__all__ = ["FeatureStatistics"]
