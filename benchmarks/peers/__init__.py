"""What benchmarks compare against: other people's libraries, used as their documentation shows, and plain torch."""
