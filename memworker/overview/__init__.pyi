from .show import Overview as Overview, show_table as show_table
