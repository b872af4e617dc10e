"""How a board gets its plan: its profile, the plan request, downloads, and the files kept between starts."""
