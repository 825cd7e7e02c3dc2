"""What happens beside training: averaging, watching, timing, showing and writing it down."""
