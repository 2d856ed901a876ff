"""The report: one HTML file about runs or a study, to open anywhere and send around."""
