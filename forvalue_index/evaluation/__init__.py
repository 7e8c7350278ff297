"""Are the values right?"""
