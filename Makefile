sqlx:
	@true
