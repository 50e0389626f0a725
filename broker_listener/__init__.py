"""The unprivileged side: consumes KNIME's jobs, decides which user needs an executor, hands the jobs over."""
