package manage

// SetPageBytes makes pages short without much text. Call it before the first request.
func (s *Server) SetPageBytes(n int) { s.pageBytes = n }
