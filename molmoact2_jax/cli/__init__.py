"""The commands of molmoact2."""
