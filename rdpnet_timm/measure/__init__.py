"""What is measured, and how: time, size, difference, the machine; and the figures of others to put beside."""
