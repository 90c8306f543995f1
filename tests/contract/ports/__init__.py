"""One suite for each port: what callers rely on, held against everything that stands behind it."""
