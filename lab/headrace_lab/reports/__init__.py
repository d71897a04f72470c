"""What benchmarks, evidence and examples write: results, reports, plots."""
