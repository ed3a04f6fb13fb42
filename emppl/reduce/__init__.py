"""Few weighted rows or steps of data in place of many, where EM is the same on both."""
