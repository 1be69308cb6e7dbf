package definition

const MaxSchemas = maxSchemas

// Len counts the compiled schemas that are kept.
func (s *Schemas) Len() int { return len(s.compiled) }
