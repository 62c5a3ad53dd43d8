"""Results as people see them: tables, figures and the report."""
