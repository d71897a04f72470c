"""The output of benchmarks, evidence and examples: results, reports, plots."""
