"""What is done about trainings, not about one artifact: a study of many seeds, a sweep, a teacher's labels."""
