"""The comparison report: runs of the tracking server to one page, tables and figures."""
