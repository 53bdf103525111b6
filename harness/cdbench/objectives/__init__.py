"""One loss term a file: where it comes from, a pure function, a thin class around it."""
