"""The rules of pggit-reactor: values in, decisions out, without I/O, without a clock and without dice."""
