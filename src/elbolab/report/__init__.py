"""The comparison report: its tables, sentences, figures and page."""
