"""What outlives the process: tables, the database that holds them, and one room of functions per noun.

Every function takes an `AsyncSession` given by `Database.read()` or `Database.write()` and neither commits nor rolls back.
"""
