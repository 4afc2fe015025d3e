//! Variables, expressions and templates over one request.
