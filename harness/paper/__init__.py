"""The paper's numbers, tables, figures and claims beside ours."""
