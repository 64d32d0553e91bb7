//! The Google-compatible edge: REST and gRPC handlers, authentication, authorization, conversion, error mapping.

pub mod seam;
