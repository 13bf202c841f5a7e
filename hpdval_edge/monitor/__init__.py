"""What a model meets in use: how often it names each label, how its scores drift, which pictures are worth a look."""
