"""Records -> tables and figures -> templates. Every number in a report comes from a record and names its runs."""
