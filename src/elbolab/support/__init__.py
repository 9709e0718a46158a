"""What every room uses: errors, files, signals, statistics, the formats of numbers. It knows no other room."""
